//! The Prometheus collector and the health endpoints.
