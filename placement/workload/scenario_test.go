package workload

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"shoal/placement"
	"shoal/placement/internal/world"
)

// TestScenarios plays the stories in testdata/*.txt. Commands:
//
//	deployment size=3 image=v1 surge=1 unavailable=0   make it
//	set image=v2 size=5 paused=true                    change it
//	plan                                               plan and apply once
//	ready [n]                                          make n more pods ready (default: all)
//	fail                                               make one ready pod of the newest image unready
//	gone                                               terminating pods have ended
//	wait 10m                                           let time pass
//
// Each prints what the Deployment then looks like: events of the step, one line per image with
// pods ready/all, and its conditions. Rewrite the expectations with -rewrite.
func TestScenarios(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, path := range paths {
		c := cluster{world.New(), t}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			c.t, c.Events = t, nil
			c.play(d)
			return c.picture()
		})
	}
}

func (c cluster) play(d *datadriven.TestData) {
	switch d.Cmd {
	case "deployment":
		var size, surge, unavailable int
		var image string
		for key, into := range map[string]any{"size": &size, "surge": &surge, "unavailable": &unavailable, "image": &image} {
			if d.HasArg(key) {
				d.ScanArgs(c.t.(*testing.T), key, into)
			}
		}
		c.Put(makeDeployment(int32(size), image, intstr.FromInt32(int32(surge)), intstr.FromInt32(int32(unavailable))))
	case "set":
		c.edit(func(o *appsv1.Deployment) {
			for _, arg := range d.CmdArgs {
				switch arg.Key {
				case "image":
					o.Spec.Template.Spec.Containers[0].Image = arg.Vals[0]
				case "size":
					o.Spec.Replicas = ptr.To(int32(number(arg.Vals[0])))
				case "paused":
					o.Spec.Paused = arg.Vals[0] == "true"
				}
			}
		})
	case "plan":
		c.plan()
	case "ready":
		left := 1000
		if len(d.CmdArgs) > 0 {
			left = number(d.CmdArgs[0].Key)
		}
		c.makeReady(left)
	case "fail":
		c.failOne()
	case "gone":
		c.EndTerminating(nil)
	case "wait":
		span, err := time.ParseDuration(d.CmdArgs[0].Key)
		if err != nil {
			c.t.Fatalf("%v", err)
		}
		c.Now = c.Now.Add(span)
	default:
		c.t.Fatalf("unknown command %q", d.Cmd)
	}
}

// makeReady starts up to so many pods that are not ready, by name.
func (c cluster) makeReady(most int) {
	for _, p := range c.Pods("default") {
		if most > 0 && !placement.Ready(p) && p.DeletionTimestamp == nil {
			c.Bind(p, "n0")
			c.Run(p, true)
			most--
		}
	}
}

func (c cluster) failOne() {
	image := c.deployment().Spec.Template.Spec.Containers[0].Image
	for _, p := range c.Pods("default") {
		if p.Spec.Containers[0].Image == image && placement.Ready(p) {
			c.Run(p, false)
			return
		}
	}
}

// picture is the Deployment as a reader of a scenario sees it. Template hashes are left out.
func (c cluster) picture() string {
	var text strings.Builder
	for _, e := range c.Events {
		if message, ok := strings.CutPrefix(e, "ScalingReplicaSet: "); ok {
			text.WriteString(c.withImages(message) + "\n")
		}
	}
	type line struct{ ready, all, ending int }
	lines := map[string]line{}
	for _, p := range c.Pods("default") {
		l := lines[p.Spec.Containers[0].Image]
		switch {
		case p.DeletionTimestamp != nil:
			l.ending++
		case placement.Ready(p):
			l.ready++
			l.all++
		default:
			l.all++
		}
		lines[p.Spec.Containers[0].Image] = l
	}
	for _, image := range slices.Sorted(maps.Keys(lines)) {
		l := lines[image]
		fmt.Fprintf(&text, "%s: %d/%d ready", image, l.ready, l.all)
		if l.ending > 0 {
			fmt.Fprintf(&text, ", %d terminating", l.ending)
		}
		text.WriteString("\n")
	}
	d := c.deployment()
	for _, condition := range d.Status.Conditions {
		fmt.Fprintf(&text, "%s=%s %s\n", condition.Type, condition.Status, condition.Reason)
	}
	if revision := d.Annotations[revisionAnnotation]; revision != "" {
		fmt.Fprintf(&text, "revision %s\n", revision)
	}
	return text.String()
}

// withImages names ReplicaSets by their image.
func (c cluster) withImages(message string) string {
	for _, rs := range c.View.ReplicaSets.In("default") {
		message = strings.ReplaceAll(message, rs.Name, rs.Spec.Template.Spec.Containers[0].Image)
	}
	return message
}

// number reads an argument of a scenario; a wrong one is the scenario's mistake and ends the test.
func number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		panic("scenario: " + err.Error())
	}
	return n
}
