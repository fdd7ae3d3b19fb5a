"""MLflow plugins for catdog-pyfunc; may import `catdog_pyfunc`, never the reverse. Nothing is registered yet."""
