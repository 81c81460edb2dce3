"""What an experiment takes, told before anything is done: shapes, parameters, disk, memory and time of each stage."""
