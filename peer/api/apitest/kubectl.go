package apitest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	kubectl "k8s.io/kubectl/pkg/cmd"
)

// asKubectl makes a test's own binary act as kubectl.
const asKubectl = "SHOAL_TEST_ACT_AS_KUBECTL"

// ActAsKubectl must be the first call of TestMain in packages that call [Cluster.Kubectl]. In the child process it runs
// the command that upstream's kubectl runs, and does not return.
func ActAsKubectl() {
	if os.Getenv(asKubectl) == "" {
		return
	}
	if err := kubectl.NewDefaultKubectlCommand().Execute(); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// Kubectl runs kubectl as a cluster administrator and returns what it printed. stdin may be empty. The error holds what
// it printed to stderr.
func (c *Cluster) Kubectl(stdin string, arguments ...string) (string, error) {
	kubeconfig, err := c.Kubeconfig()
	if err != nil {
		return "", err
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	var stdout, stderr bytes.Buffer
	command := exec.Command(self, arguments...)
	command.Env = append(os.Environ(), asKubectl+"=1", "KUBECONFIG="+kubeconfig, "HOME="+c.dir)
	command.Stdin, command.Stdout, command.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := command.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(arguments, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// Kubeconfig writes a file with which kubectl is a cluster administrator.
func (c *Cluster) Kubeconfig() (string, error) {
	path := filepath.Join(c.dir, "kubeconfig")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	admin, err := c.Remote("admin", "system:masters")
	if err != nil {
		return "", err
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["test"] = &clientcmdapi.Cluster{Server: c.URL, CertificateAuthorityData: c.ca}
	config.AuthInfos["admin"] = &clientcmdapi.AuthInfo{ClientCertificateData: admin.CertData, ClientKeyData: admin.KeyData}
	config.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "admin"}
	config.CurrentContext = "test"
	return path, clientcmd.WriteToFile(*config, path)
}
