"""Fast forwards for models built like Llama: compiled, packed or in fixed shapes."""
