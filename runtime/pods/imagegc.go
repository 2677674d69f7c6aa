package pods

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// ImageThresholds say when unused images are removed, in percent of the disk with the images that is in use.
// https://kubernetes.io/docs/concepts/architecture/garbage-collection/#container-image-garbage-collection
type ImageThresholds struct {
	High int // from here on some go; 100 means never
	Low  int // until no more than this is in use
}

// DefaultImageThresholds are the kubelet's.
func DefaultImageThresholds() ImageThresholds { return ImageThresholds{High: 85, Low: 80} }

// Validate refuses thresholds that make no sense.
func (t ImageThresholds) Validate() error {
	switch {
	case t.High < 0 || t.High > 100 || t.Low < 0 || t.Low > 100:
		return fmt.Errorf("the image thresholds %d and %d are no percentages", t.High, t.Low)
	case t.Low >= t.High:
		return fmt.Errorf("the low image threshold %d must be below the high one, %d", t.Low, t.High)
	}
	return nil
}

// Excess is how many bytes to free on a disk with so many bytes available of a capacity; 0 below the high threshold.
func (t ImageThresholds) Excess(available, capacity uint64) int64 {
	if t.High >= 100 || capacity == 0 || available > capacity {
		return 0
	}
	if used := 100 - float64(available)*100/float64(capacity); used < float64(t.High) {
		return 0
	}
	return int64(float64(capacity)*float64(100-t.Low)/100) - int64(available)
}

// unusedFor is how long an image must not have been used before it may go: one that was just pulled or imported is about to be.
const unusedFor = 2 * time.Minute

// ImageUse is when each image of a node was used last, as far as this process has seen. The zero value has seen nothing. It has one owner.
type ImageUse struct{ last map[string]time.Time }

// Note takes in which images there are and who uses them now.
func (u *ImageUse) Note(images []Image, pods []*corev1.Pod, now time.Time) {
	idle := map[string]bool{}
	for _, image := range UnusedImages(images, pods) {
		idle[image.ID] = true
	}
	last := make(map[string]time.Time, len(images))
	for _, image := range images {
		before, known := u.last[image.ID]
		if !known || !idle[image.ID] {
			before = now
		}
		last[image.ID] = before
	}
	u.last = last
}

// Collect chooses images to remove, for that many bytes of theirs: unused ones, those that have not been used for longest first. As with the
// kubelet, an image's size is what was pulled, which is less than what its removal frees.
func (u *ImageUse) Collect(images []Image, pods []*corev1.Pod, excess int64, now time.Time) []Image {
	var chosen []Image
	unused := UnusedImages(images, pods)
	slices.SortStableFunc(unused, func(a, b Image) int { return cmp.Or(u.last[a.ID].Compare(u.last[b.ID]), cmp.Compare(a.ID, b.ID)) })
	for _, image := range unused {
		last, known := u.last[image.ID]
		if excess <= 0 || !known || now.Sub(last) < unusedFor {
			break
		}
		chosen = append(chosen, image)
		excess -= image.Size
	}
	return chosen
}
