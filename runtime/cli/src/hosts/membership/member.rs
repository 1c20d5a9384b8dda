//! What a host's key in etcd says of it, signed with the key that the hosts share.

use rally_transport::handshake::Claims;
use rally_transport::key::{PROOF_BYTES, SharedKey};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const PURPOSE: &[u8] = b"rally member";

/// A host that is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name in the graph.
    pub host: String,
    /// Where it listens.
    pub address: String,
    /// Version of rally.
    pub version: String,
    /// Of its plan, as a handshake's errors print it.
    pub plan: String,
    /// Of its model.
    pub model: String,
    /// Of its process.
    pub incarnation: String,
    /// The membership epoch that it takes part in.
    pub epoch: Option<String>,
    /// Transports that it has. What else one needs is told over the connection, once an epoch.
    pub transports: Vec<String>,
    /// By device that is on it, the stages there.
    pub serves: BTreeMap<String, Vec<String>>,
}

#[derive(Serialize, Deserialize)]
struct Signed {
    #[serde(flatten)]
    member: Member,
    proof: String,
}

impl Member {
    /// Of a host that says `claims` in handshakes.
    pub fn new(claims: &Claims, address: String, transports: &[&str], serves: BTreeMap<String, Vec<String>>) -> Self {
        Self {
            host: claims.host.clone(),
            address,
            version: claims.version.clone(),
            plan: claims.plan.to_string(),
            model: claims.model.to_string(),
            incarnation: format!("{:016x}", claims.incarnation),
            epoch: None,
            transports: transports.iter().map(|name| (*name).to_owned()).collect(),
            serves,
        }
    }

    /// Whether handshakes with a host that says `claims` come to something.
    pub fn agrees(&self, claims: &Claims) -> bool {
        (&self.version, &self.plan, &self.model)
            == (&claims.version, &claims.plan.to_string(), &claims.model.to_string())
    }

    fn proof(&self, key: &SharedKey, name: &str) -> Option<[u8; PROOF_BYTES]> {
        Some(key.prove(&[PURPOSE, name.as_bytes(), &serde_json::to_vec(self).ok()?]))
    }

    /// As the value of the key `name`.
    pub fn sign(&self, key: &SharedKey, name: &str) -> Option<Vec<u8>> {
        let proof: String = self.proof(key, name)?.iter().map(|byte| format!("{byte:02x}")).collect();
        serde_json::to_vec(&Signed { member: self.clone(), proof }).ok()
    }

    /// The value of the key `name`; none if it is of no host that has the shared key.
    pub fn read(value: &[u8], key: &SharedKey, name: &str) -> Option<Self> {
        let Signed { member, proof } = serde_json::from_slice(value).ok()?;
        let mut bytes = [0; PROOF_BYTES];
        if !proof.is_ascii() || proof.len() != 2 * PROOF_BYTES {
            return None;
        }
        for (byte, digits) in bytes.iter_mut().zip(proof.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        let told = serde_json::to_vec(&member).ok()?;
        key.verify(&[PURPOSE, name.as_bytes(), &told], &bytes).then_some(member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rally_transport::handshake::{Hash, HostRole};

    fn member() -> Member {
        let claims = Claims {
            host: "f0".into(),
            to: String::new(),
            role: HostRole::Worker,
            version: "0.1.0".into(),
            plan: Hash::of(&[b"plan"]),
            model: Hash::of(&[b"model"]),
            epoch: 3,
            incarnation: 0x1234,
        };
        let serves = BTreeMap::from([("ffn".to_owned(), vec!["expert_ffn".to_owned()])]);
        let member = Member::new(&claims, "10.0.0.1:7700".into(), &["tcp"], serves);
        assert!(member.agrees(&claims) && !member.agrees(&Claims { plan: Hash::of(&[b"other"]), ..claims }));
        member
    }

    fn key(text: &str) -> SharedKey {
        SharedKey::new(text.as_bytes()).expect("it is long enough")
    }

    #[test]
    fn a_member_is_read_as_it_was_written_under_its_own_key_only() {
        let (member, key, other) = (member(), key("a key of sixteen bytes"), key("another of sixteen bytes"));
        let value = member.sign(&key, "/rally/g/hosts/f0").expect("it can be written");
        assert_eq!(Member::read(&value, &key, "/rally/g/hosts/f0"), Some(member));
        assert_eq!(Member::read(&value, &other, "/rally/g/hosts/f0"), None, "another shared key");
        assert_eq!(Member::read(&value, &key, "/rally/g/hosts/f1"), None, "moved to another host's key");
    }

    proptest! {
        /// Whoever can write to etcd and has not the shared key says nothing that is believed.
        #[test]
        fn nothing_of_it_can_be_changed(place in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let (member, key) = (member(), key("a key of sixteen bytes"));
            let mut value = member.sign(&key, "k").expect("it can be written");
            let place = place.index(value.len());
            value[place] = byte;
            let read = Member::read(&value, &key, "k");
            // The same but for the case of a hexadecimal digit, or of nothing.
            prop_assert!(read.is_none() || read == Some(member));
        }

        #[test]
        fn junk_is_no_member(value in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(Member::read(&value, &key("a key of sixteen bytes"), "k"), None);
        }
    }
}
