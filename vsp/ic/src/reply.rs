//! How an order to a service ends: with a value, or with a reason why not.

use std::time::Duration;

use crate::service::Service;
use crate::wire::Status;

/// Why a guest did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The service does not run in the guest.
    #[error("the guest does not offer the service '{0}' (its driver or daemon is not running)")]
    Unavailable(Service),
    /// The guest took the request and did not answer.
    #[error("the guest did not answer the service '{service}' within {} seconds", .patience.as_secs())]
    NoAnswer {
        /// The service.
        service: Service,
        /// How long was waited.
        patience: Duration,
    },
    /// The guest answered that it would not.
    #[error("the guest refused: {0}")]
    Refused(Status),
    /// The answer makes no sense.
    #[error("the guest's answer makes no sense: {0}")]
    Malformed(&'static str),
    /// The channel was closed while the guest was at it.
    #[error("the guest closed the service's channel")]
    Closed,
    /// The order does not fit what is going on.
    #[error("{0}")]
    Conflict(&'static str),
    /// The order itself is wrong.
    #[error("{0}")]
    Invalid(String),
}

type Tell<T> = Box<dyn FnOnce(Result<T, Failure>) + Send>;

/// Where the outcome of an order goes. It is always told, at the latest when the order is forgotten.
pub struct Reply<T>(Option<Tell<T>>);

impl<T> Reply<T> {
    /// Tells the outcome to a function.
    pub fn new(tell: impl FnOnce(Result<T, Failure>) + Send + 'static) -> Reply<T> {
        Reply(Some(Box::new(tell)))
    }

    /// For orders whose outcome nobody waits for.
    pub fn nobody() -> Reply<T> {
        Reply(None)
    }

    /// Whether nobody waits for the outcome.
    pub fn is_nobodys(&self) -> bool {
        self.0.is_none()
    }

    /// Tells the outcome.
    pub fn send(mut self, outcome: Result<T, Failure>) {
        if let Some(tell) = self.0.take() {
            tell(outcome);
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            tell(Err(Failure::Closed));
        }
    }
}

impl<T> std::fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reply")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_forgotten_order_is_told() {
        let (sender, receiver) = mpsc::channel();
        let other = sender.clone();
        drop(Reply::<u8>::new(move |outcome| sender.send(outcome).unwrap()));
        assert_eq!(receiver.recv(), Ok(Err(Failure::Closed)));
        Reply::new(move |outcome| other.send(outcome).unwrap()).send(Ok(3));
        assert_eq!(receiver.recv(), Ok(Ok(3)));
        assert!(receiver.recv().is_err());
    }
}
