package pods

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func consumer(name string, priority int32, request string, used int64) Consumer {
	return Consumer{
		Pod: &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)},
			Spec: corev1.PodSpec{Priority: &priority, Containers: []corev1.Container{{
				Name: "main", Image: name, Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(request)}},
			}}},
		},
		Containers: map[string]int64{"main": used},
	}
}

func TestThoseBeyondTheirRequestsAreEvictedFirst(t *testing.T) {
	deleted := consumer("deleted", 0, "1Mi", 1<<30)
	deleted.Pod.DeletionTimestamp = &metav1.Time{}
	ranked := RankForEviction([]Consumer{
		consumer("within", -5, "100Mi", 50<<20), consumer("critical", criticalPriority, "1Mi", 1<<30), consumer("beyond", 10, "1Mi", 20<<20),
		deleted, consumer("far-beyond", 10, "1Mi", 40<<20), consumer("cheap", 0, "1Mi", 2<<20),
	}, corev1.ResourceMemory)
	var names []string
	for _, c := range ranked {
		names = append(names, c.Pod.Name)
	}
	if got := strings.Join(names, " "); got != "cheap far-beyond beyond within" {
		t.Errorf("the order is %s", got)
	}
	want := "The node was low on resource: memory. Container main was using 2Mi, request is 1Mi, has larger consumption of memory. "
	if got := EvictionMessage(ranked[0], corev1.ResourceMemory); got != want {
		t.Errorf("it says %q", got)
	}
}

func TestImagesInUseAreKept(t *testing.T) {
	short := consumer("nginx", 0, "1Mi", 0).Pod
	byID := consumer("example.org/moved:1", 0, "1Mi", 0).Pod
	byID.Status.ContainerStatuses = []corev1.ContainerStatus{{ImageID: "sha256:running"}}
	unused := UnusedImages([]Image{
		{ID: "sha256:1", Names: []string{"docker.io/library/nginx:latest"}, Size: 5}, {ID: "sha256:running", Names: []string{"example.org/other:2"}, Size: 6},
		{ID: "sha256:small", Names: []string{"example.org/small:1"}, Size: 1}, {ID: "sha256:large", Size: 9},
	}, []*corev1.Pod{short, byID})
	if len(unused) != 2 || unused[0].ID != "sha256:large" || unused[1].ID != "sha256:small" {
		t.Errorf("unused: %+v", unused)
	}
}
