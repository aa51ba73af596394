//! What starts, limits and stops things for the tests. Nothing here asserts what the product
//! promises; it fails only when a test cannot be carried out.
//!
//! Start reading at [`daemon::Daemon`] and [`sandbox`].

pub(crate) mod cgroup;
pub(crate) mod command;
pub(crate) mod daemon;
pub(crate) mod host;
pub(crate) mod lxc;
pub(crate) mod machine;
pub(crate) mod oci;
pub(crate) mod profile;
pub(crate) mod sandbox;
pub(crate) mod table;
pub(crate) mod text;

/// Tests the function `engine` with each engine that has an id map, and this script inside.
#[macro_export]
macro_rules! on_each_engine {
    ($inside:expr) => {
        #[test]
        fn runc() {
            engine(|daemon| oci::run("runc", daemon, oci::Container::with_users($inside)));
        }

        #[test]
        fn crun() {
            engine(|daemon| oci::run("crun", daemon, oci::Container::with_users($inside)));
        }

        #[test]
        fn lxc_with_an_id_map() {
            engine(|daemon| lxc::run(daemon, 144 * MIB, 100_000, $inside));
        }
    };
}
