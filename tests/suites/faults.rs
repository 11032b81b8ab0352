//! Every fault a t3 can have, as the probe names it: the step and the reason, from one `probe` and from `serve`.

use crate::support::world::World;

/// Fault of the stand-in, t3's version, what the pulse says, what the handshake says.
const FAULTS: &[(&str, &str, &str, &str)] = &[];

#[test]
fn a_healthy_instance_of_every_generation_is_well() {
    let world = World::with(&[("ann", "0.0.24"), ("bob", "0.0.26"), ("cid", "0.0.33")]);
    for user in ["ann", "bob", "cid"] {
        let probed = world.probe(user);
        assert_eq!(
            (probed.decided("pulse"), probed.decided("handshake")),
            ("ok".to_owned(), "ok".to_owned()),
            "{}",
            probed.json
        );
        assert_eq!(probed.exit, 0);
    }
}
