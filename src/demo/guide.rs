//! What the demo prints: what there is to look at, to play and to break, each line as it is to be typed.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

use super::{CANDIDATES, CULPRIT, HOST_COMMAND, Instance, World, identity};

impl World {
    pub(super) fn guide(
        &self,
        fleet: &[Instance],
        address: SocketAddr,
        door: SocketAddr,
        edges: &[(&str, SocketAddr)],
        config: &Path,
    ) -> String {
        let (program, dir, config) = (self.program.display(), self.dir.display(), config.display());
        let cid = self.base_dir("cid");
        let [(good, _), (bad, _)] = CANDIDATES;
        let mut text = format!(
            "\nA fleet of {} simulated t3 servers is running below {dir}; nothing of yours is touched.\n\n",
            fleet.len()
        );
        for Instance { user, version, port, .. } in fleet {
            let _ = writeln!(text, "  {user}  t3 {version}  port {port}");
        }
        let _ = writeln!(
            text,
            "\nCome in as one of them through the front door, which logs them in on their way:"
        );
        for (user, edge) in edges {
            let _ = writeln!(text, "  as {user}        http://{edge}/any/page");
        }
        let ann = identity("ann");
        let _ =
            writeln!(text, "  by hand       curl -i -H 'X-authentik-username: {ann}' http://{door}/any/page");
        let _ = write!(
            text,
            "
Look at it:
  status page   http://{address}/
  history       http://{address}/history
  metrics       http://{address}/metrics
  one probe     {program} --config {config} probe

Ask whether a new build is safe to give to them, and see what the page says of it:
  {program} --config {config} gate {good}        # the good one
  {program} --config {config} gate {bad}        # a broken one

Play the bad nightly at 4 a.m., with nobody at the keyboard (demo --nightly does it by itself): the gate lets it pass,
cid and then others get it, it breaks while it is watched, and everybody is where they were. It takes about a minute.
  {program} --config {config} enforce --dry-run        # what it would do
  {program} --config {config} enforce
Nothing is upgraded any more until somebody has understood it and says so:
  rm {freeze}

Break something, in another terminal, and watch the page name it:
  {program} sim fault {dir}/home/ann/.t3 --help        # the faults there are
  {program} sim fault {dir}/home/ann/.t3 exchange-500 on
  {program} sim fault {dir}/home/bob/.t3 hang on

Play the outage: a newer t3 mints on the database of a running older one. Then bring cid back, with every message: the
page counts them below \"Can everybody's data be brought back?\".
  {culprit} auth pairing create --base-dir {cid} --json
  {program} --config {config} backup restore cid --auth-only --yes

Again, with a t3 that changes the history as well: only a snapshot helps, and what cid has written since is put aside.
  {program} sim write {cid} --as 0.0.24 --messages 3
  {host} auth pairing create --base-dir {cid} --json
  {program} --config {config} backup restore cid        # says what that would cost
  {program} --config {config} backup restore cid --yes

Ctrl-C stops the fleet and removes everything.",
            freeze = self.freeze_file().display(),
            culprit = self.t3(CULPRIT).display(),
            host = self.t3(HOST_COMMAND).display(),
            cid = cid.display(),
        );
        text
    }
}
