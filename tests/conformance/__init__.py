"""The trainer held against the published OpenAPI document: `make conformance OPENAPI=...`."""
