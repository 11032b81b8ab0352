//! How long a connection is waited for. One timer per connection that is set seldom: what happens in time costs nothing
//! but the note that it happened.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

#[derive(Debug)]
pub struct Patience {
    timer: Pin<Box<Sleep>>,
    /// When waiting ends, unless something moves before.
    until: Instant,
    period: Duration,
    /// Grows with every byte or step that moves.
    moved: u64,
    /// What `moved` was when the timer was last looked at.
    seen: u64,
}

/// Nothing moved for the whole period.
#[derive(Debug)]
pub struct Exhausted;

impl Patience {
    pub fn new(period: Duration) -> Self {
        let until = Instant::now() + period;
        Self { timer: Box::pin(sleep_until(until)), until, period, moved: 0, seen: 0 }
    }

    /// A new wait begins.
    pub fn begin(&mut self, now: Instant, period: Duration) {
        self.period = period;
        self.until = now + period;
        self.moved += 1;
        self.seen = self.moved;
        if self.until < self.timer.deadline() {
            self.timer.as_mut().reset(self.until);
        }
    }

    pub fn note(&mut self) {
        self.moved += 1;
    }

    /// Ready when nothing has moved for the period. The period is only looked at when the timer fires, so a stall is
    /// found after one period at the earliest and two at the latest.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Exhausted> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if self.moved != self.seen {
                self.seen = self.moved;
                self.until = now + self.period;
            }
            if now >= self.until {
                return Poll::Ready(Exhausted);
            }
            self.timer.as_mut().reset(self.until);
        }
        Poll::Pending
    }

    /// Waits for `work`, as long as something moves.
    pub async fn wait<T>(
        &mut self,
        mut work: impl FnMut(&mut Context<'_>, &mut Self) -> Poll<T>,
    ) -> Result<T, Exhausted> {
        poll_fn(|cx| match work(cx, self) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => self.poll(cx).map(Err),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn patience_ends_after_the_period_when_nothing_moves() {
        let start = Instant::now();
        let mut patience = Patience::new(Duration::from_secs(100));
        patience.begin(start, Duration::from_secs(10));
        assert!(patience.wait(|_, _| Poll::<()>::Pending).await.is_err());
        assert_eq!(start.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_moves_goes_on() {
        let start = Instant::now();
        let mut patience = Patience::new(Duration::from_secs(10));
        let mut moves = 0;
        let ended = patience.wait(|_, patience| {
            moves += 1;
            if moves < 2 {
                patience.note();
            }
            Poll::<()>::Pending
        });
        assert!(ended.await.is_err());
        assert_eq!(start.elapsed().as_secs(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_longer_wait_is_not_cut_short_by_the_timer_of_a_shorter_one() {
        let start = Instant::now();
        let mut patience = Patience::new(Duration::from_secs(5));
        patience.begin(start, Duration::from_secs(60));
        assert!(patience.wait(|_, _| Poll::<()>::Pending).await.is_err());
        assert_eq!(start.elapsed().as_secs(), 60);
    }
}
