"""How a set is judged: protocols, trainers, students, accuracies."""
