"""A guardrail proxy for the Gemini API."""
