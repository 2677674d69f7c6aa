package placement

import "k8s.io/apimachinery/pkg/types"

// SetFailure records why the last attempt to create or delete pods for a controller was refused
// (quota, admission), so that its next plan can say so in a condition; "" clears it. The leader
// that applies plans calls it.
func (v *View) SetFailure(controller types.UID, message string) {
	if message == "" {
		delete(v.failures, controller)
		return
	}
	v.failures[controller] = message
}

// Failure is what SetFailure recorded.
func (v *View) Failure(controller types.UID) string { return v.failures[controller] }
