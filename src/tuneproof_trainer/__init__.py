"""A self-hosted server of the OpenAI fine-tuning API over open-weight models."""
