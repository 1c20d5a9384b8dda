//! A host's key in etcd: there as long as the host is, and gone with its lease.

use super::Members;
use super::etcd::{EtcdError, Lease};
use super::member::Member;
use crate::error::{Blame, CliError};
use crossbeam::channel::{Receiver, Sender, after, select, unbounded};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Keeps a host's key until it is dropped, and takes it away then.
pub struct Keeper {
    epochs: Option<Sender<Option<u64>>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Writes the key of `member`, and keeps it on a thread of its own.
    pub fn start(
        members: &Arc<Members>,
        member: Member,
        patience: Option<Duration>,
        interrupts: &Receiver<()>,
    ) -> Result<Self, CliError> {
        let mut kept = Kept { members: Arc::clone(members), member, lease: None };
        members.persist(patience, interrupts, || kept.write())?;
        let (epochs, told) = unbounded();
        let thread =
            std::thread::Builder::new().name("membership".into()).spawn(move || kept.keep(&told)).or_failure()?;
        Ok(Self { epochs: Some(epochs), thread: Some(thread) })
    }

    /// The host takes part in this epoch from now on, or in none.
    pub fn takes_part(&self, epoch: Option<u64>) {
        if let Some(epochs) = &self.epochs {
            // Nobody hears it where the thread has panicked.
            let _ = epochs.send(epoch);
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.epochs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Kept {
    members: Arc<Members>,
    member: Member,
    /// None after it ran out.
    lease: Option<Lease>,
}

impl Kept {
    /// Writes the key, under the lease there is or a new one.
    fn write(&mut self) -> Result<(), EtcdError> {
        let etcd = &self.members.etcd;
        let lease = match self.lease.take() {
            Some(lease) => lease,
            None => etcd.grant(self.members.lease_seconds)?,
        };
        etcd.put(&self.members.key_of(&self.member.host), &self.members.value_of(&self.member), &lease)?;
        self.lease = Some(lease);
        Ok(())
    }

    fn keep(mut self, epochs: &Receiver<Option<u64>>) {
        // Two may fail before the lease runs out.
        let pulse = Duration::from_secs(self.members.lease_seconds.into()) / 3;
        let (mut well, mut changed) = (true, false);
        loop {
            select! {
                recv(epochs) -> epoch => match epoch {
                    Ok(epoch) => {
                        let last = epochs.try_iter().last().unwrap_or(epoch);
                        self.member.epoch = last.map(|epoch| format!("{epoch:016x}"));
                        changed = true;
                    }
                    Err(_) => return self.leave(),
                },
                recv(after(pulse)) -> _ => {}
            }
            let kept = self.pulse(changed);
            match &kept {
                Ok(()) if !well => tracing::info!("this host's key in etcd is kept again"),
                Ok(()) => {}
                // It is tried at every pulse; once is enough to tell.
                Err(error) if well => tracing::warn!(%error, "this host's key in etcd is not kept, and may run out"),
                Err(error) => tracing::debug!(%error, "this host's key in etcd is not kept"),
            }
            (well, changed) = (kept.is_ok(), changed && kept.is_err());
        }
    }

    fn pulse(&mut self, changed: bool) -> Result<(), EtcdError> {
        if let Some(lease) = &self.lease
            && !self.members.etcd.keep(lease)?
        {
            self.lease = None;
        }
        if self.lease.is_some() {
            return if changed { self.write() } else { Ok(()) };
        }
        // Since then another process may have come as this host: who came last is the one.
        let other = |member: &Member| member.host == self.member.host && member.incarnation != self.member.incarnation;
        match self.members.all()?.into_iter().find(other) {
            Some(Member { host, address, .. }) => Err(EtcdError::Refused {
                endpoint: self.members.etcd.endpoints(),
                message: format!("host `{host}` is at {address} by now"),
            }),
            None => self.write(),
        }
    }

    /// The host is gone at once, and not when its lease runs out.
    fn leave(&self) {
        if let Some(lease) = &self.lease
            && let Err(error) = self.members.etcd.revoke(lease)
        {
            tracing::debug!(%error, "this host's key in etcd stays until its lease runs out");
        }
    }
}
