package fleet

import (
	"time"

	"shoal/sim/clients"
	"shoal/sim/history"
)

// Judge holds what the clients did and saw to what clients are promised, with the checkers of sim/history, and adds to the violations what
// was not kept. It says that the run is invalid if they did too little. It must not be called in a bubble: its time limits are real ones.
func (r *Report) Judge(plan Plan) error {
	if r.History == nil {
		return nil // it never got that far
	}
	for _, v := range history.Check(r.History, history.Options{Timeout: 20 * time.Second}) {
		r.Violations = append(r.Violations, Violation{Checker: v.Checker, At: r.Recorded + v.At, Message: v.Key + ": " + v.Message})
	}
	r.Clients = clients.Measure(r.History)
	return r.Clients.Invalid(plan.Users.withDefaults().MinPerMinute/60, 0.5)
}
