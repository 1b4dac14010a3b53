"""The methods that come with ddbench: an ordinary package that enters by the door that strangers use."""
