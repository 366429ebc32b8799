//! Request and response types of the management interface
