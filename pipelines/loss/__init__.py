"""What the language model's own predictions become where an SAE's reconstructions stand in for a layer's output."""
