"""TuneProof: your production outcomes train your next model."""
