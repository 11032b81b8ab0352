//! A process that ends with the test that started it, however that ends.

use std::process::Child;

pub struct Held(pub Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
