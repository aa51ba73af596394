//! Finds the containers of a predecessor's counter records. Start reading at
//! [`Callers::adopt_recorded`].

use std::collections::HashSet;
use std::io;

use super::Callers;
use crate::clock;
use crate::context::Context;
use crate::counter_store::CounterStore;
use crate::membership::Membership;

impl Callers {
    /// Registers the containers of a predecessor's records, so that they are listed and their load
    /// is sampled before their first request. The first call reads the files of each process of the
    /// machine; concurrent callers wait for it, later calls do nothing.
    pub(crate) fn adopt_recorded(&self, context: &Context) {
        if let Some(store) = context.counter_store.get() {
            store.adopted.call_once_force(|_| self.find_recorded(store, context));
        }
    }

    fn find_recorded(&self, store: &CounterStore, context: &Context) {
        let left = store.unclaimed();
        let cgroups = left.iter().filter(|(namespace, _)| *namespace == 0);
        let mut cgroups: HashSet<u64> = cgroups.map(|&(_, key)| key).collect();
        let namespaces = left.iter().map(|&(namespace, _)| namespace);
        let mut namespaces: HashSet<u64> = namespaces.filter(|&number| number != 0).collect();
        let (mut alive, mut all_seen) = (HashSet::new(), true);
        let Ok(processes) = context.proc.processes() else { return };
        let mut text = Vec::new();
        for pid in processes {
            if namespaces.is_empty() && cgroups.is_empty() {
                break;
            }
            match context.proc.pid_namespace(pid) {
                Ok(namespace) if namespaces.contains(&namespace) => {
                    alive.insert(namespace);
                    if self.identify(pid, clock::now(), context).is_ok() {
                        namespaces.remove(&namespace);
                    }
                }
                Ok(namespace) if namespace == context.own_namespace && !cgroups.is_empty() => {
                    let text = context.proc.read_of(pid, "cgroup", &mut text);
                    let key = text.ok().map(|text| Membership::parse(text).key());
                    if key.is_some_and(|key| cgroups.contains(&key))
                        && self.identify_host(pid, clock::now(), context).is_ok()
                    {
                        cgroups.retain(|other| Some(*other) != key);
                    }
                }
                Ok(_) => {}
                Err(error) => all_seen &= error.kind() != io::ErrorKind::PermissionDenied,
            }
        }
        // A record of a pid namespace without processes is obsolete. One of a cgroup is kept:
        // processes can enter it again.
        let gone = left.into_iter().filter(|(namespace, _)| namespaces.contains(namespace));
        gone.filter(|(namespace, _)| all_seen && !alive.contains(namespace))
            .for_each(|key| store.discard_unclaimed(key));
    }
}
