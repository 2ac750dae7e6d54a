"""What an intervention did to a language model, measured in weights and activations."""
