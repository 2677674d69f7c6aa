package pods

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Reasons of waiting containers, as users know them from the kubelet.
const (
	reasonImagePull       = "ErrImagePull"
	reasonImageBackOff    = "ImagePullBackOff"
	reasonImageNeverPull  = "ErrImageNeverPull"
	reasonImageInvalid    = "InvalidImageName"
	reasonImageInspect    = "ImageInspectError"
	reasonImageMissing    = "ErrImageNotFound" // ours: looked and not there; never shown
	reasonConfigError     = "CreateContainerConfigError"
	reasonCreateError     = "CreateContainerError"
	reasonRunError        = "RunContainerError"
	reasonStartError      = "StartError"
	reasonPostStartFailed = "PostStartHookError"
)

// pullShown is how long a failed pull is shown as ErrImagePull before it is shown as back-off.
const pullShown = time.Second

// image returns the image to run c from, or asks for what is needed to have it. lastExit is when the attempt before ended, for Always.
func (p *planner) image(c *corev1.Container, lastExit time.Time) (Image, bool) {
	fact, known := p.state.Images[c.Image]
	inspect, pull := Key{Verb: InspectImage, Subject: c.Image}, Key{Verb: PullImage, Subject: c.Image}
	switch c.ImagePullPolicy {
	case corev1.PullAlways:
		if known && fact.Pulled && !fact.At.Before(lastExit) {
			return fact.Image, true
		}
		p.try(Action{Key: pull, Container: c.Name})
		return Image{}, false
	case corev1.PullNever:
		if known {
			return fact.Image, true
		}
		p.try(Action{Key: inspect, Container: c.Name})
		return Image{}, false
	}
	if known {
		return fact.Image, true
	}
	p.fetch(Action{Key: inspect, Container: c.Name}, Action{Key: pull, Container: c.Name})
	return Image{}, false
}

// fetch looks for an image and pulls it when it is not there. After a failed pull it keeps looking while it waits for the next one:
// somebody may have imported the image, or another pod's pull brought it.
func (p *planner) fetch(inspect, pull Action) {
	looked, ok := p.state.Failures[inspect.Key]
	if !ok || looked.Reason != reasonImageMissing {
		p.try(inspect)
		return
	}
	if _, failed := p.state.Failures[pull.Key]; failed && !p.pending(pull.Key) {
		p.try(inspect)
	}
	if !p.pending(inspect.Key) {
		p.try(pull)
	}
}

// imageWaiting explains why the image of c is not there; nil when it is merely on its way.
func (p *planner) imageWaiting(c *corev1.Container) *corev1.ContainerStateWaiting {
	inspect, inspected := p.state.Failures[Key{Verb: InspectImage, Subject: c.Image}]
	if inspected && inspect.Reason == reasonImageMissing && c.ImagePullPolicy == corev1.PullNever {
		message := fmt.Sprintf("Container image %q is not present with pull policy of Never", c.Image)
		p.noticeOnce("never:"+c.Name, 1, fieldPath(p.pod, c.Name), corev1.EventTypeWarning, reasonImageNeverPull, message)
		return &corev1.ContainerStateWaiting{Reason: reasonImageNeverPull, Message: message}
	}
	if inspected && inspect.Reason != reasonImageMissing && c.ImagePullPolicy != corev1.PullAlways {
		return &corev1.ContainerStateWaiting{Reason: inspect.Reason, Message: inspect.Message}
	}
	f, failed := p.state.Failures[Key{Verb: PullImage, Subject: c.Image}]
	if !failed {
		return nil
	}
	if f.Reason != reasonImagePull {
		return &corev1.ContainerStateWaiting{Reason: f.Reason, Message: f.Message}
	}
	if shown := f.At.Add(pullShown); p.now.Before(shown) {
		p.wake(shown)
		return &corev1.ContainerStateWaiting{Reason: f.Reason, Message: f.Message}
	}
	message := fmt.Sprintf("Back-off pulling image %q: %s: %s", c.Image, f.Reason, f.Message)
	p.noticeOnce("pull:"+c.Image, f.Count, fieldPath(p.pod, c.Name), corev1.EventTypeNormal, "BackOff", fmt.Sprintf("Back-off pulling image %q", c.Image))
	return &corev1.ContainerStateWaiting{Reason: reasonImageBackOff, Message: message}
}
