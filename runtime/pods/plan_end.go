package pods

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// sidecarGrace is what a sidecar gets to stop when the pod's grace period is used up by the time its turn comes.
const sidecarGrace = 2 * time.Second

// killAfter is how long after a stop should have ended it is enforced (or when a shorter grace period was asked for since).
const killAfter = 2 * time.Second

// end brings the pod as a whole to an end: containers in order, then all else, then the object if it is being deleted.
func (p *planner) end() {
	p.ending = true
	if p.rec.StopFrom.IsZero() {
		p.rec.StopFrom = p.now
	}
	for _, verb := range []Verb{PullImage, InspectImage, RunPostStart} {
		for key := range p.state.InFlight {
			if key.Verb == verb {
				p.out.Cancel = append(p.out.Cancel, key)
			}
		}
	}
	if !p.state.TornDown {
		if !p.stopAll(p.rec.StopFrom.Add(podGrace(p.pod)), "") || p.busy() {
			return
		}
		p.stopped = true
		p.try(Action{Key: Key{Verb: Teardown}})
		return
	}
	p.stopped = true
	switch {
	case p.state.Removed:
		p.out.Done = true
	case p.pod.DeletionTimestamp == nil:
	case p.state.Deleted:
		p.out.Done = true
	default:
		p.try(Action{Key: Key{Verb: DeletePod}})
	}
}

// busy reports whether something is in flight that makes what a teardown would remove.
func (p *planner) busy() bool {
	for key := range p.state.InFlight {
		switch key.Verb {
		case PullImage, InspectImage, RunPostStart, Teardown, DeletePod:
		default:
			return true
		}
	}
	return false
}

// stopAll stops every container by the deadline: first all but sidecars, then sidecars from the last to the first. It reports whether
// none is left. Readiness goes on being probed meanwhile.
func (p *planner) stopAll(deadline time.Time, reason string) (done bool) {
	sidecars := map[string]bool{}
	for i := range p.pod.Spec.InitContainers {
		c := &p.pod.Spec.InitContainers[i]
		sidecars[c.Name] = restartable(c)
	}
	done = true
	for i := range p.state.Containers {
		if cur := &p.state.Containers[i]; !sidecars[cur.Name] && cur.Status == StatusRunning {
			done = false
			p.stopOne(cur, deadline, reason)
		}
	}
	if !done {
		return false
	}
	for i := len(p.pod.Spec.InitContainers) - 1; i >= 0; i-- {
		cur := p.latest[p.pod.Spec.InitContainers[i].Name]
		if cur != nil && cur.Status == StatusRunning {
			if earliest := p.now.Add(sidecarGrace); deadline.Before(earliest) && !p.state.InFlight[Key{Verb: StopContainer, Subject: cur.ID}] {
				deadline = earliest
			}
			p.stopOne(cur, deadline, reason)
			return false
		}
	}
	return true
}

// stopOne asks a container to stop by the deadline, and kills it when it is still there well after.
func (p *planner) stopOne(cur *ContainerState, deadline time.Time, reason string) {
	c := findContainer(p.pod, cur.Name)
	if reason == "" {
		reason = "Stopping container " + cur.Name
	}
	key := Key{Verb: StopContainer, Subject: cur.ID}
	if !p.state.InFlight[key] {
		p.try(Action{Key: key, Container: cur.Name, ID: cur.ID, Grace: max(0, deadline.Sub(p.now)), PreStop: hasPreStop(c), Reason: reason})
	} else if kill := deadline.Add(killAfter); p.now.Before(kill) {
		p.wake(kill)
	} else {
		p.try(Action{Key: Key{Verb: KillContainer, Subject: cur.ID}, Container: cur.Name, ID: cur.ID})
	}
	if c != nil && p.state.started(c, cur) && c.ReadinessProbe != nil {
		p.out.Probes = append(p.out.Probes, ProbeTarget{Container: c.Name, ContainerID: cur.ID, Kind: ReadinessProbe, StartedAt: cur.StartedAt})
	}
}

func findContainer(pod *corev1.Pod, name string) *corev1.Container {
	for _, c := range allContainers(pod) {
		if c.Name == name {
			return c
		}
	}
	return nil
}
