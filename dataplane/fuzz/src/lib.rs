//! What has to hold whatever arrives, as functions that panic where it does not. The fuzz targets call them with
//! libFuzzer's inputs, the tests of the data plane with generated ones.

pub mod frames;
