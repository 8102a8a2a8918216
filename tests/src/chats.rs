//! What must hold of every channel to a chat, against a far end that reads messages as the service does. How messages of one service
//! look, and what its answers mean, is left to that one's tests.
#![expect(clippy::panic, reason = "a test fails by panic")]

use std::fmt::Debug;

use proptest::test_runner::{Config, TestRunner};
use sysops_agent::deliver::channel::{Channel, Receipt, SendError};
use sysops_agent::model::{Alert, Notice, Severity, Status};

use crate::channels::send;
use crate::http_far_end::{Answer, FarEnd, Request};
use crate::injection;

type Make = dyn Fn(&str) -> Box<dyn Channel>;

/// One service.
pub struct Chat {
    /// Makes the channel to a far end at this URL.
    pub at: Box<Make>,
    /// What the service answers.
    pub answer: fn(&Request) -> Answer,
    /// What the receipt says of a message that is taken.
    pub receipt: &'static str,
    /// What must hold of every message, whatever is told.
    pub holds: fn(&Request, &Notice),
}

impl Chat {
    /// Sends the notices: each is taken as the message that it is, and what must hold holds. Gives what came.
    ///
    /// # Panics
    /// When it is otherwise.
    pub async fn takes(&self, notices: impl IntoIterator<Item = Notice>) -> Vec<Request> {
        let far_end = FarEnd::answering(self.answer).await;
        let mut channel = (self.at)(&far_end.url);
        let notices: Vec<Notice> = notices.into_iter().collect();
        for notice in &notices {
            let sent = send(&mut *channel, notice).await;
            let receipt = sent.unwrap_or_else(|error| panic!("{error}: {:.60}", notice.head().message));
            assert_eq!(receipt.answer, self.receipt);
        }
        let seen = far_end.seen();
        assert_eq!(seen.len(), notices.len(), "no message had to be sent again as plain text");
        seen.iter().zip(&notices).for_each(|(request, notice)| (self.holds)(request, notice));
        seen
    }

    /// The same for notices of any text, any length and any number of alerts.
    ///
    /// # Panics
    /// When it is otherwise, with the least such notice.
    pub fn takes_any(&self) {
        let config = Config { failure_persistence: None, ..Config::with_cases(64) };
        let taken = TestRunner::new(config).run(&injection::any_notice(), |notice| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(self.takes([notice]));
            Ok(())
        });
        taken.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Sends `notice` to a far end that gives these answers, one after another. Gives what came of it and what came there.
    pub async fn told(
        &self,
        notice: &Notice,
        answers: impl IntoIterator<Item = Answer>,
    ) -> (Result<Receipt, SendError>, Vec<Request>) {
        let far_end = FarEnd::start(answers).await;
        let sent = send(&mut *(self.at)(&far_end.url), notice).await;
        (sent, far_end.seen())
    }

    /// Sends twice to a far end whose first answer is `limited`; the second is held back here. Gives what came of the first, and for how
    /// many milliseconds nothing is sent.
    ///
    /// # Panics
    /// When the second goes out.
    pub async fn held_back(&self, limited: Answer) -> (Result<Receipt, SendError>, u128) {
        let far_end = FarEnd::start([limited]).await;
        let mut channel = (self.at)(&far_end.url);
        let first = send(&mut *channel, &injection::notice("dd")).await;
        let second = send(&mut *channel, &injection::notice("dd")).await;
        assert_eq!(far_end.seen().len(), 1);
        (first, pause(second))
    }
}

/// The milliseconds after which a channel wants to try again.
///
/// # Panics
/// When it does not.
pub fn pause(sent: Result<impl Debug, SendError>) -> u128 {
    match sent {
        Err(SendError::Retry { after: Some(after), .. }) => after.as_millis(),
        other => panic!("{other:?}"),
    }
}

/// True when someone is to be woken.
#[must_use]
pub fn is_urgent(notice: &Notice) -> bool {
    let wakes = |alert: &Alert| alert.status == Status::Firing && alert.severity >= Severity::Critical;
    notice.alerts.iter().any(wakes)
}
