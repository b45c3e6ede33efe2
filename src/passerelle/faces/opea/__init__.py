"""OPEA's LLM microservice: ``query`` on ``/v1/chat/completions``, ``/v1/health_check``, ``/v1/statistics``."""
