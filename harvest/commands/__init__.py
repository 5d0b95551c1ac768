"""The commands of stage 1, one file each."""
