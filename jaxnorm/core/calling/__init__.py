"""What surrounds the call of a public function: checks of its arguments, errors, and tracing only once."""
