"""What the README's numbers come from, one command each: writes results/<name>.json and ends with its headline."""
