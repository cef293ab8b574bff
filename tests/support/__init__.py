"""What tests share: tiny models, traces, policies, rows and commands."""
