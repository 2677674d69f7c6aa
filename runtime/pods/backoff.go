package pods

import "time"

// Restart and pull back-off as documented for pods: 10 s doubling to 5 min, forgotten after 10 min.
// https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy
const (
	backoffFirst = 10 * time.Second
	backoffMax   = 5 * time.Minute
	backoffReset = 2 * backoffMax
)

// retryFirst and retryMax bound the wait after a step that failed without user code being involved (sandbox, volumes, config).
const (
	retryFirst = 500 * time.Millisecond
	retryMax   = 10 * time.Second
)

// Backoff of one container's restarts.
type Backoff struct {
	Delay time.Duration // to wait after the next exit; zero for none yet
	Since time.Time     // when Delay was set: the start of the attempt it will delay
}

// wait returns until when a container that ended at exit must not be started again; zero when it may be now.
func (b Backoff) wait(exit time.Time) time.Time {
	if b.Delay == 0 || b.expired(exit) {
		return time.Time{}
	}
	return exit.Add(b.Delay)
}

// next is the back-off after restarting, at now, a container that ended at exit.
func (b Backoff) next(exit, now time.Time) Backoff {
	if b.Delay == 0 || b.expired(exit) {
		return Backoff{Delay: backoffFirst, Since: now}
	}
	return Backoff{Delay: min(2*b.Delay, backoffMax), Since: now}
}

func (b Backoff) expired(exit time.Time) bool { return exit.Sub(b.Since) > backoffReset }

// retryAt is when a failed action may be tried again.
func retryAt(verb Verb, f Failure) time.Time {
	first, limit := retryFirst, retryMax
	if verb == PullImage {
		first, limit = backoffFirst, backoffMax
	}
	return f.At.Add(double(first, limit, f.Count-1))
}

// double returns first doubled times times, at most limit.
func double(first, limit time.Duration, times int) time.Duration {
	d := first
	for range times {
		if d *= 2; d >= limit {
			return limit
		}
	}
	return d
}
