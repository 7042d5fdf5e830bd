//! The channels of a frame that have no column of their own, parsed from the JSON of their row.

use std::collections::BTreeMap;

use contract::point::ExtraValue;

/// The values of extra channels by name. Numbers take 8 bytes each, whatever their JSON is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Extras(Vec<(String, ExtraColumn)>);

#[derive(Debug, Clone, PartialEq)]
enum ExtraColumn {
    /// A missing value is NaN, which JSON cannot hold.
    Numbers(Vec<f64>),
    /// A publisher's channel may have texts.
    Mixed(Vec<Option<ExtraValue>>),
}

impl Extras {
    /// Parses the column `extras` of a row; a text that this program did not write holds nothing.
    #[must_use]
    pub fn parse(text: Option<&str>) -> Self {
        let Some(text) = text else { return Self::default() };
        // Nearly all channels are numbers alone, and those parse several times faster.
        if let Ok(numbers) = serde_json::from_str::<BTreeMap<String, Vec<Option<f64>>>>(text) {
            let column = |values: Vec<Option<f64>>| {
                values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect()
            };
            let columns = numbers.into_iter();
            return Self(
                columns
                    .map(|(name, values)| (name, ExtraColumn::Numbers(column(values))))
                    .collect(),
            );
        }
        let mixed: BTreeMap<String, Vec<Option<ExtraValue>>> =
            serde_json::from_str(text).unwrap_or_default();
        Self(mixed.into_iter().map(|(name, all)| (name, ExtraColumn::Mixed(all))).collect())
    }

    /// Returns the number of channels.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the values of sample `i`, by channel.
    pub fn of_sample(&self, i: usize) -> impl Iterator<Item = (String, ExtraValue)> + '_ {
        self.0.iter().filter_map(move |(name, column)| {
            let value = match column {
                ExtraColumn::Numbers(all) => {
                    all.get(i).filter(|value| !value.is_nan()).map(|v| ExtraValue::Number(*v))
                }
                ExtraColumn::Mixed(all) => all.get(i)?.clone(),
            };
            Some((name.clone(), value?))
        })
    }

    /// Returns about how many bytes of memory the values take.
    #[must_use]
    pub fn memory(&self) -> usize {
        let column = |(name, column): &(String, ExtraColumn)| {
            let values = match column {
                ExtraColumn::Numbers(all) => all.len().saturating_mul(size_of::<f64>()),
                ExtraColumn::Mixed(all) => {
                    let texts = all.iter().flatten().map(|value| match value {
                        ExtraValue::Number(_) => 0,
                        ExtraValue::Text(text) => text.len(),
                    });
                    let each = size_of::<Option<ExtraValue>>();
                    texts.sum::<usize>().saturating_add(all.len().saturating_mul(each))
                }
            };
            values.saturating_add(name.len())
        };
        self.0.iter().map(column).fold(0, usize::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_texts_come_back_sample_by_sample() {
        let number = |name: &str, n| (name.to_owned(), ExtraValue::Number(n));
        let extras = Extras::parse(Some(r#"{"inletC":[180,null,181.5],"lid":[1]}"#));
        assert_eq!(extras.len(), 2);
        let of = |i| extras.of_sample(i).collect::<Vec<_>>();
        assert_eq!(of(0), [number("inletC", 180.0), number("lid", 1.0)]);
        assert_eq!(of(1), []);
        assert_eq!(of(2), [number("inletC", 181.5)]);
        let extras = Extras::parse(Some(r#"{"a":[1,null],"state":["ON",null]}"#));
        let text = ("state".to_owned(), ExtraValue::Text("ON".to_owned()));
        assert_eq!(extras.of_sample(0).collect::<Vec<_>>(), [number("a", 1.0), text]);
        assert!(extras.memory() > 60);
        assert!(Extras::parse(Some("[1]")).is_empty());
        assert!(Extras::parse(None).is_empty());
    }
}
