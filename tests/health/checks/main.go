// What Argo CD and Flux make of objects: their own code, asked outside of a cluster.
//
// Reads {"overrides": {"group/Kind": Lua}, "expressions": {Kind: CEL}, "objects": [...]} from
// standard input and writes one answer an object to standard output.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	appv1 "github.com/argoproj/argo-cd/v3/pkg/apis/application/v1alpha1"
	"github.com/argoproj/argo-cd/v3/util/lua"
	"github.com/argoproj/gitops-engine/pkg/health"
	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

type question struct {
	Overrides   map[string]string                           `json:"overrides"`
	Expressions map[string]kustomize.HealthCheckExpressions `json:"expressions"`
	Objects     []*unstructured.Unstructured                `json:"objects"`
}

type verdict struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

type answer struct {
	ArgoCD  verdict `json:"argocd"`
	Kstatus verdict `json:"kstatus"`
	Flux    verdict `json:"flux"`
}

func argocd(object *unstructured.Unstructured, overrides lua.ResourceHealthOverrides) verdict {
	found, err := health.GetResourceHealth(object, overrides)
	if err != nil {
		return verdict{"Error", err.Error()}
	}
	if found == nil { // Argo CD then calls it healthy because it exists
		return verdict{"", ""}
	}
	return verdict{string(found.Status), found.Message}
}

func kstatus(object *unstructured.Unstructured) verdict {
	found, err := status.Compute(object)
	if err != nil {
		return verdict{"Error", err.Error()}
	}
	return verdict{string(found.Status), found.Message}
}

func flux(object *unstructured.Unstructured, expressions kustomize.HealthCheckExpressions) verdict {
	evaluator, err := cel.NewStatusEvaluator(&expressions)
	if err != nil {
		return verdict{"Error", err.Error()}
	}
	found, err := evaluator.Evaluate(context.Background(), object)
	if err != nil {
		return verdict{"Error", err.Error()}
	}
	return verdict{string(found.Status), found.Message}
}

func run() error {
	var asked question
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		return err
	}
	overrides := lua.ResourceHealthOverrides{}
	for kind, script := range asked.Overrides {
		overrides[kind] = appv1.ResourceOverride{HealthLua: script}
	}
	answers := []answer{}
	for _, object := range asked.Objects {
		found := answer{ArgoCD: argocd(object, overrides), Kstatus: kstatus(object)}
		if expressions, ok := asked.Expressions[object.GetKind()]; ok {
			found.Flux = flux(object, expressions)
		}
		answers = append(answers, found)
	}
	return json.NewEncoder(os.Stdout).Encode(answers)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
