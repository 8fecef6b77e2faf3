//! Plans that grow and shrink between kills, and what begins anew with that.

use super::load::now_us;
use super::victims::Victim;
use super::{Run, SERVERS_MAX, Struck};
use crate::growth;
use crate::support::{inspect, nginx};
use haypile_service::plan::Component;

impl Run<'_> {
    /// A server more, or one less, if the plan is one of combined servers.
    pub(super) fn change_plan(&mut self, what: &str) {
        let count = self.life.plan.count(Component::Transport);
        let combined = |count: u16| format!("TS{count}LS{count}CM{count}");
        if self.life.plan.to_string() != combined(count) {
            return;
        }
        let grows = count < SERVERS_MAX && (count == 1 || self.random.below(2) == 0);
        let plan = combined(if grows { count + 1 } else { count - 1 });
        growth::set_plan(self.stage, &plan).expect_success(&format!("{what}, then {plan}"));
        self.life.plan = plan.parse().expect("a plan");
        self.life.quiet = None;
        let what = format!("{what}, then {plan}");
        self.wait_for_answers(now_us(), &what);
        // The UDP ports of a server that leaves are nobody's for a moment.
        self.explain(if grows { Victim::Nobody } else { Victim::DatagramServer }, &what);
        self.changes += 1;
        self.renew_programs(&what);
    }

    /// What a process has of the servers is what it had use for at its start: nginx's workers, say, prepare for a
    /// life without the right to open descriptors, and what they have prepared goes with the next server that
    /// dies. Those that begin now have as much as any that comes.
    pub(super) fn renew_programs(&mut self, what: &str) {
        let struck = self.kill_datagrams();
        self.wait_for_answers(struck.dead_us, what);
        self.explain(Victim::DatagramServer, what);
        let of_nginx = nginx::workers(self.life.nginx_master);
        let of_prefork = self.life.prefork_children();
        for (victim, children) in
            [(Victim::NginxWorker, of_nginx), (Victim::PreforkChild, of_prefork)]
        {
            for child in children {
                Struck::down(child);
                inspect::wait_until_disowned(self.stage, child);
            }
            nginx::workers(self.life.nginx_master);
            self.life.prefork_children();
            self.wait_for_answers(now_us(), what);
            self.explain(victim, what);
        }
    }
}
