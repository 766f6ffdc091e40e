"""What weighs and tries the project itself; nothing here is shipped."""
