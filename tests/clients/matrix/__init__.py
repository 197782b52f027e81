"""Real clients before the proxy and a scripted Gemini: what each of them shows. ``make clients`` runs it."""
