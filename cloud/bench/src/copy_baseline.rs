//! The baseline of `ingest`: writes the same points by PostgreSQL's own binary COPY into a plain
//! table with a primary key, with synchronous commit, while nothing else runs. Ingestion cannot
//! perform the same work faster; it does more (signatures, duplicates, chains) and stores one frame
//! per row.

use std::time::Instant;

use sqlx::{Connection as _, Executor as _, PgConnection};
use testbed::Postgres;

const POINTS_A_COPY: usize = 10_000;
const COPIES: usize = 60;

#[allow(clippy::disallowed_methods)] // a measurement reads the clock
pub async fn copy_points_per_s(database: &Postgres, machines: usize) -> anyhow::Result<f64> {
    let mut connection = PgConnection::connect(&database.url()).await?;
    connection
        .execute(
            "CREATE TABLE copied (machine integer, seq bigint, t_ms bigint, bt real, et real, \
             ror real, gas real, fan real, drum real, ambient real, PRIMARY KEY (machine, seq))",
        )
        .await?;
    connection.execute("SET synchronous_commit = on").await?;
    let mut seq = vec![0_i64; machines];
    let start = Instant::now();
    for copy in 0..COPIES {
        let mut copying = connection.copy_in_raw("COPY copied FROM STDIN (FORMAT binary)").await?;
        copying.send(rows(copy, &mut seq)).await?;
        copying.finish().await?;
    }
    let points = (COPIES * POINTS_A_COPY) as f64;
    let took = start.elapsed().as_secs_f64();
    let found: i64 =
        sqlx::query_scalar("SELECT count(*) FROM copied").fetch_one(&mut connection).await?;
    anyhow::ensure!(found == i64::try_from(COPIES * POINTS_A_COPY)?, "{found} rows of {points}");
    Ok(points / took)
}

/// Encodes the PGCOPY format: signature, flags, rows of length-prefixed fields, and −1 as the end.
fn rows(copy: usize, seq: &mut [i64]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(POINTS_A_COPY * 100);
    bytes.extend_from_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
    for i in 0..POINTS_A_COPY {
        let machine = (copy * POINTS_A_COPY + i) % seq.len();
        let number = seq[machine];
        seq[machine] += 1;
        bytes.extend_from_slice(&10_i16.to_be_bytes());
        let mut field = |value: &[u8]| {
            bytes.extend_from_slice(&i32::try_from(value.len()).unwrap_or(0).to_be_bytes());
            bytes.extend_from_slice(value);
        };
        field(&i32::try_from(machine).unwrap_or(0).to_be_bytes());
        field(&number.to_be_bytes());
        field(&(1_760_000_000_000 + number * 100).to_be_bytes());
        for channel in 0..7_u8 {
            field(&(150.0_f32 + f32::from(channel) + (number % 600) as f32 / 10.0).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&(-1_i16).to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes before the first row, of each row, and after the last one.
    const HEAD: usize = 19;
    const ROW: usize = 2 + (4 + 4) + 2 * (4 + 8) + 7 * (4 + 4);
    const END: usize = 2;

    #[test]
    fn the_points_of_each_machine_are_numbered_without_gaps_over_all_copies() {
        let mut seq = [0; 3];
        let first = rows(0, &mut seq);
        assert_eq!(first.len(), HEAD + POINTS_A_COPY * ROW + END);
        assert_eq!(seq, [3_334, 3_333, 3_333]);
        assert!(first.ends_with(&[0xff, 0xff]));
        // The fourth row is the second point of machine 0: ten fields, 4 and 8 bytes the first two.
        let row = &first[HEAD + 3 * ROW..];
        let expected = [0, 10, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!(row[..22], expected);
        // The next copy goes on with machine 1.
        let second = rows(1, &mut seq);
        assert_eq!(seq, [6_667, 6_667, 6_666]);
        assert_eq!(second[HEAD + 6..HEAD + 10], [0, 0, 0, 1]);
        assert_eq!(second[HEAD + 14..HEAD + 22], 3_333_i64.to_be_bytes());
    }
}
