"""What the tools need from a model: its layers, their calls, and which of them keep running statistics."""
