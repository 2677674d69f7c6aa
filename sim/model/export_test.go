package model

// WithBug switches a deliberate bug on, for tests outside of this package.
func WithBug(cfg Config, bug string) Config {
	cfg.bug = bug
	return cfg
}

// The deliberate bugs that tests outside of this package use.
const (
	BugNoFencingTime = bugNoFencingTime
	BugNoEvictions   = bugNoEvictions
)
