package pods

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func TestImageThresholds(t *testing.T) {
	for _, test := range []struct {
		t                   ImageThresholds
		available, capacity uint64
		want                int64
	}{
		{DefaultImageThresholds(), 160, 1000, 0},
		{DefaultImageThresholds(), 150, 1000, 50},
		{DefaultImageThresholds(), 0, 1000, 200},
		{ImageThresholds{High: 50, Low: 10}, 500, 1000, 400},
		{ImageThresholds{High: 100, Low: 80}, 0, 1000, 0},
		{DefaultImageThresholds(), 0, 0, 0},
		{DefaultImageThresholds(), 2000, 1000, 0}, // no disk says so, but for some network file systems
	} {
		if got := test.t.Excess(test.available, test.capacity); got != test.want {
			t.Errorf("%+v with %d of %d available: %d, want %d", test.t, test.available, test.capacity, got, test.want)
		}
	}
	for bad, ok := range map[ImageThresholds]bool{{85, 80}: true, {100, 0}: true, {80, 80}: false, {80, 85}: false, {101, 80}: false, {50, -1}: false} {
		if err := bad.Validate(); (err == nil) != ok {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// TestImagesUnusedForLongestGoFirst: images in use, and those that came or were used a moment ago, stay.
func TestImagesUnusedForLongestGoFirst(t *testing.T) {
	image := func(name string, size int64) Image { return Image{ID: name, Names: []string{name}, Size: size} }
	images := []Image{image("used", 100), image("once", 10), image("never", 10), image("late", 10)}
	uses := func(names ...string) []*corev1.Pod {
		pod := &corev1.Pod{}
		for _, name := range names {
			pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Image: name})
		}
		return []*corev1.Pod{pod}
	}
	var u ImageUse
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	u.Note(images[:3], uses("used", "once"), at)
	if got := u.Collect(images[:3], uses("used", "once"), 1000, at.Add(time.Minute)); len(got) != 0 {
		t.Errorf("a minute after the first look %v", got)
	}
	at = at.Add(time.Hour)
	u.Note(images[:3], uses("used", "once"), at)
	at = at.Add(3 * time.Minute)
	u.Note(images, uses("used"), at)
	names := func(images []Image) (list []string) {
		for _, i := range images {
			list = append(list, i.ID)
		}
		return list
	}
	for excess, want := range map[int64][]string{0: nil, 10: {"never"}, 11: {"never", "once"}, 1000: {"never", "once"}} {
		if got := names(u.Collect(images, uses("used"), excess, at)); !slices.Equal(got, want) {
			t.Errorf("for %d bytes %v, want %v", excess, got, want)
		}
	}
}
