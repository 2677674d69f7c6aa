package api

import (
	"strings"

	apimachineryversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/component-base/compatibility"
)

// reportedVersion reports GitVersion where the build did not set k8s.io/component-base/version.gitVersion: kubectl refuses
// a server whose version it cannot parse.
type reportedVersion struct{ compatibility.EffectiveVersion }

// Info is what /version answers.
func (v reportedVersion) Info() *apimachineryversion.Info {
	info := *v.EffectiveVersion.Info()
	if strings.HasPrefix(info.GitVersion, "v0.0.0") {
		info.GitVersion = GitVersion
	}
	if strings.HasPrefix(info.GitCommit, "$") {
		info.GitCommit = ""
	}
	return &info
}
