"""Ways to cause every kind of error that a user can cause, by what they are about."""
