//! The fields of `ContainerProcessState` of the OCI runtime specification that are used here.
//!
//! The version is ignored: crun always sends 0.2.0, runc the version that it was built with. Fields
//! that are not known are ignored, so that no message costs a container its listener.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The name that the specification gives the listener.
pub(super) const LISTENER: &str = "seccompFd";

/// What a runtime sends with the listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Message {
    #[serde(default)]
    pub(super) oci_version: String,
    /// The names of the descriptors, in the order in which they are sent.
    pub(super) fds: Vec<String>,
    /// The process that installed the filter, in the runtime's pid namespace.
    #[serde(default)]
    pub(super) pid: i32,
    /// `listenerMetadata` of the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) metadata: Option<String>,
    pub(super) state: State,
}

/// The state of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State {
    #[serde(default)]
    pub(super) oci_version: String,
    pub(super) id: String,
    #[serde(default)]
    pub(super) status: String,
    /// The container's init.
    #[serde(default)]
    pub(super) pid: i32,
    #[serde(default)]
    pub(super) bundle: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

impl Message {
    /// Returns the index of the listener among the descriptors.
    pub(super) fn listener(&self) -> Option<usize> {
        self.fds.iter().position(|name| name == LISTENER)
    }

    /// Returns an annotation of the container.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.state.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

/// For fuzz targets: parses what a runtime may send.
#[cfg(feature = "fuzzing")]
pub(in super::super) fn parse(text: &[u8]) {
    for message in serde_json::Deserializer::from_slice(text).into_iter::<Message>().flatten() {
        let _ = (message.listener(), message.annotation(super::ANNOTATION));
        let again = serde_json::to_vec(&message).map(|text| serde_json::from_slice(&text).ok());
        assert_eq!(again.ok().flatten(), Some(message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_runc_is_read() {
        let message: Message = serde_json::from_str(
            r#"{"ociVersion":"1.0.2","fds":["seccompFd"],"pid":4242,"metadata":"policy=x",
                "state":{"ociVersion":"1.0.2","id":"web","status":"creating","pid":4242,
                "bundle":"/b","annotations":{"ambit.intercept":"sysinfo"}}}"#,
        )
        .unwrap();
        assert_eq!(message.listener(), Some(0));
        assert_eq!((message.pid, message.state.id.as_str()), (4242, "web"));
        assert_eq!(message.annotation("ambit.intercept"), Some("sysinfo"));
    }

    #[test]
    fn a_message_of_crun_is_read() {
        let message: Message = serde_json::from_str(
            r#"{"ociVersion":"0.2.0","fds":["other","seccompFd"],"pid":7,"metadata":"",
                "state":{"ociVersion":"1.0","id":"a","pid":7,"root":"/r","bundle":"/b",
                "status":"created","annotations":null,"owner":"root"}}"#,
        )
        .unwrap();
        assert_eq!(message.listener(), Some(1));
        assert_eq!(message.annotation("ambit.intercept"), None);
    }

    #[test]
    fn a_container_without_name_is_refused() {
        let text = r#"{"fds":["seccompFd"],"state":{}}"#;
        assert!(serde_json::from_str::<Message>(text).is_err());
    }
}
