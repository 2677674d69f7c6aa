package store

// View is an immutable snapshot of a Store.
type View struct{ s *state }
