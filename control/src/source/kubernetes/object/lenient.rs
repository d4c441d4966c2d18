//! Fields of any type: where the type is not the one that is wanted, that is said instead of failing.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A scalar.
#[derive(Debug, Default)]
pub(super) enum Scalar {
    /// Nothing there, or null.
    #[default]
    None,
    Text(Box<str>),
    Number(i64),
    Bool(bool),
    /// What no field here has: a fraction, a list, a mapping.
    Other,
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("nothing"),
            Self::Text(text) => write!(f, "`{}`", Short(text)),
            Self::Number(number) => write!(f, "{number}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Other => f.write_str("a value of another type"),
        }
    }
}

/// Text of unknown length for a message.
pub(super) struct Short<'a>(pub(super) &'a str);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const KEPT: usize = 80;
        let text: String = self.0.chars().take(KEPT).collect();
        let more = if text.len() < self.0.len() { ".." } else { "" };
        write!(f, "{}{more}", text.escape_debug())
    }
}

/// A mapping of fixed keys.
#[derive(Debug, Default)]
pub(super) enum Part<T> {
    /// Nothing there, or null.
    #[default]
    None,
    Some(T),
    /// No mapping.
    Wrong,
}

impl<T: Default> Part<T> {
    /// The mapping, an empty one where there is none, and whether something else was there.
    pub(super) fn take(self) -> (T, bool) {
        match self {
            Self::None => (T::default(), false),
            Self::Some(part) => (part, false),
            Self::Wrong => (T::default(), true),
        }
    }
}

/// A list.
#[derive(Debug)]
pub(super) struct Many<T> {
    pub(super) items: Vec<T>,
    /// Whether something else was there.
    pub(super) wrong: bool,
}

impl<T> Default for Many<T> {
    fn default() -> Self {
        Self { items: Vec::new(), wrong: false }
    }
}

/// A mapping from text to text, of which `keep` says which keys are kept.
#[derive(Debug, Default)]
pub(super) struct Texts<K> {
    pub(super) entries: Vec<(Box<str>, Box<str>)>,
    pub(super) keep: PhantomData<K>,
}

/// See [`Texts`].
pub(super) trait Keep {
    fn keep(key: &str) -> bool;
}

/// The scalars that a visitor of something else refuses.
macro_rules! refuse_scalars {
    ($wrong:expr) => {
        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok($wrong)
        }
        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok($wrong)
        }
        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok($wrong)
        }
        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok($wrong)
        }
        fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
            Ok($wrong)
        }
    };
}

/// What stands for "not there".
macro_rules! accept_null {
    () => {
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        }
        fn visit_none<E>(self) -> Result<Self::Value, E> {
            Ok(Self::Value::default())
        }
        fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
            from.deserialize_any(self)
        }
    };
}

fn skip_seq<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<(), A::Error> {
    while seq.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

fn skip_map<'de, A: MapAccess<'de>>(mut map: A) -> Result<(), A::Error> {
    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(())
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Scalars;
        impl<'de> Visitor<'de> for Scalars {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar::Bool(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar::Number(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(i64::try_from(value).map_or(Scalar::Other, Scalar::Number))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Scalar, E> {
                Ok(Scalar::Other)
            }
            fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(value.into()))
            }
            accept_null!();
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Scalar, A::Error> {
                skip_seq(seq).map(|()| Scalar::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Scalar, A::Error> {
                skip_map(map).map(|()| Scalar::Other)
            }
        }
        from.deserialize_any(Scalars)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Part<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Parts<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Parts<T> {
            type Value = Part<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            refuse_scalars!(Part::Wrong);
            fn visit_unit<E>(self) -> Result<Part<T>, E> {
                Ok(Part::None)
            }
            fn visit_none<E>(self) -> Result<Part<T>, E> {
                Ok(Part::None)
            }
            fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Part<T>, D::Error> {
                from.deserialize_any(self)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Part<T>, A::Error> {
                skip_seq(seq).map(|()| Part::Wrong)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Part<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Part::Some)
            }
        }
        from.deserialize_any(Parts(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Many<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Lists<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Lists<T> {
            type Value = Many<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            refuse_scalars!(Many { items: Vec::new(), wrong: true });
            accept_null!();
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Many<T>, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Many { items, wrong: false })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Many<T>, A::Error> {
                skip_map(map).map(|()| Many { items: Vec::new(), wrong: true })
            }
        }
        from.deserialize_any(Lists(PhantomData))
    }
}

impl<'de, K: Keep + Default> Deserialize<'de> for Texts<K> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Maps<K>(PhantomData<K>);
        impl<'de, K: Keep + Default> Visitor<'de> for Maps<K> {
            type Value = Texts<K>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            refuse_scalars!(Texts::default());
            accept_null!();
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Texts<K>, A::Error> {
                skip_seq(seq).map(|()| Texts::default())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Texts<K>, A::Error> {
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<Box<str>>()? {
                    if !K::keep(&key) {
                        map.next_value::<IgnoredAny>()?;
                    } else if let Scalar::Text(value) = map.next_value()? {
                        entries.push((key, value));
                    }
                }
                Ok(Texts { entries, keep: PhantomData })
            }
        }
        from.deserialize_any(Maps(PhantomData))
    }
}
