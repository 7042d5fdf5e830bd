//! What the tests of the cloud's services share: what a service is started with, its caller, and
//! its database. No product links it.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc)] // a test may break

use std::path::PathBuf;
use std::sync::Arc;

use cache::Cache;
use contract::{Actor, ActorKind, EpochMs, OrgId};
use database::{Database, DatabaseConfig};
use http_stack::auth::{Auth, Caller, Role};
use http_stack::start::Context;
use http_stack::{AccessControl, Limits, LimitsConfig};
use service::mqtt::BrokerSettings;
use service::origin::AllowedOrigins;
use service::secret::Secret;
use service::tasks::Tasks;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub use testbed::Postgres;

/// The time at which a test's clock stands.
pub const NOW: EpochMs = EpochMs(1_760_000_000_000);

/// Returns what a service is started with: development mode, no database, and a clock that stands
/// at [`NOW`].
pub fn context() -> Context {
    let auth = Auth::dev(OrgId::new("acme").unwrap(), "ada");
    let limits = Limits::new(&LimitsConfig::default(), None, Arc::new(|| NOW));
    Context {
        access: AccessControl { auth, limits },
        cache: Cache::new(None),
        clock: Arc::new(|| NOW),
        database: None,
        mqtt: BrokerSettings::default(),
        service_token: Secret::default(),
        data: PathBuf::new(),
        development: true,
        origins: AllowedOrigins::default(),
        tasks: Tasks::new(CancellationToken::new()),
        stop: CancellationToken::new(),
    }
}

/// Returns the user `ada` of an organisation.
pub fn caller(org: &str, role: Role) -> Caller {
    let org = Some(OrgId::new(org).unwrap());
    let actor =
        Actor { kind: ActorKind::User, id: "ada".to_owned(), display: None, org: org.clone() };
    Caller { actor, org, role }
}

/// Opens a database and applies every migration.
pub async fn open_database(url: String) -> Database {
    let config = DatabaseConfig { url: url.into(), ..DatabaseConfig::default() };
    let database = Database::open(&config).await.unwrap();
    database.migrate_up().await.unwrap();
    database
}

/// Opens a new SQLite file, which is removed with the folder.
pub async fn open_sqlite() -> (TempDir, Database) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.db");
    let database = open_database(format!("sqlite:{}", path.display())).await;
    (folder, database)
}

/// Makes tests of the checks of a store, which `$store` creates from a database: each check on an
/// SQLite file of its own, and all on one PostgreSQL cluster, which takes longer to start than they
/// take. Each check has its own organisation.
#[macro_export]
macro_rules! on_both_databases {
    ($store:path; $($module:ident :: $check:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $check() {
                let (_folder, database) = $crate::open_sqlite().await;
                super::$module::$check(&$store(database)).await;
            })*
        }

        #[tokio::test]
        async fn every_check_holds_on_postgresql() {
            let cluster = $crate::Postgres::start().await.unwrap();
            let store = $store($crate::open_database(cluster.url()).await);
            $(
                eprintln!("{}", stringify!($check));
                $module::$check(&store).await;
            )*
        }
    };
}
