// Command k8s is a whole Kubernetes in one file: each part is the upstream program, chosen by the name the file is
// called under (a link named kubelet) or by its first argument (k8s kubelet ...). Nothing of Kubernetes is changed here.
//
// One binary, because the parts share most of their code: 156 MB and one link step instead of nine.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/ready"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	helm "helm.sh/helm/v4/pkg/cmd"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// Programs that bring their own main loop and read os.Args.
var loops = map[string]func(){
	"etcd":    func() { etcdmain.Main(os.Args) },
	"coredns": coremain.Run,
}

// Programs built on cobra.
var commands = map[string]func() (*cobra.Command, error){
	"kube-apiserver":          plain(apiserver.NewAPIServerCommand),
	"kube-controller-manager": plain(controllers.NewControllerManagerCommand),
	"kube-proxy":              plain(proxy.NewProxyCommand),
	"kube-scheduler":          func() (*cobra.Command, error) { return scheduler.NewSchedulerCommand(), nil },
	"kubelet":                 func() (*cobra.Command, error) { return kubelet.NewKubeletCommand(context.Background()), nil },
	"kubectl":                 plain(kubectl.NewDefaultKubectlCommand),
	"helm":                    func() (*cobra.Command, error) { return helm.NewRootCmd(os.Stdout, os.Args[1:], helm.SetupLogging) },
}

func plain(make func() *cobra.Command) func() (*cobra.Command, error) {
	return func() (*cobra.Command, error) { return make(), nil }
}

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if name == "k8s" && len(args) > 0 {
		name, args = args[0], args[1:]
	}
	os.Args = append([]string{name}, args...)
	if loop, found := loops[name]; found {
		loop()
		return
	}
	make, found := commands[name]
	if !found {
		fmt.Fprintf(os.Stderr, "k8s: there is no program %q in this binary\n", name)
		os.Exit(2)
	}
	command, err := make()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(cli.Run(command))
}
